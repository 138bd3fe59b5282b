"""Copies tensors of a layout to their places in the model."""

from torch import Tensor

from gptbench.architecture.layout import Part, Target
from gptbench.model import Bias, RMSNorm, Transformer, Weight


def module_of(model: Transformer, part: Part) -> Weight | RMSNorm | Bias:
    """Return the module that a part belongs to."""
    module = model.get_submodule(part.module)
    assert isinstance(module, Weight | RMSNorm | Bias), part.module
    return module


def assign(model: Transformer, target: Target, tensor: Tensor) -> None:
    """Copy a float tensor of the target's shape into the model, quantising it to the formats of the modules."""
    if target.transposed:
        tensor = tensor.transpose(-1, -2)
    for part in target.parts:
        module = module_of(model, part)
        if not isinstance(module, Weight):
            rows = tensor[part.rows]
            module.weight[part.row : part.row + len(rows)].copy_(rows)
        elif part.expert is None and len(module.float_shape) == 3:
            for expert, matrix in enumerate(tensor):
                module.assign(matrix[part.rows], expert, row=part.row)
        else:
            index = () if part.expert is None else (part.expert,)
            module.assign(tensor[part.rows], *index, row=part.row)


def view(model: Transformer, target: Target) -> Tensor:
    """Return the view of the model's tensor that holds a tensor of the layout, which must have a single part that is
    neither strided nor transposed."""
    (part,) = target.parts
    assert not target.transposed and part.rows == slice(0, None, 1)
    weight = module_of(model, part).weight
    return (weight if part.expert is None else weight[part.expert])[part.row : part.row + target.shape[0]]
