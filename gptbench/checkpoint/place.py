"""Where the tensors of a layout lie in a model."""

from torch import Tensor

from gptbench.architecture.layout import Part, Target
from gptbench.model import Bias, RMSNorm, Transformer, Weight


def module_of(model: Transformer, part: Part) -> Weight | RMSNorm | Bias:
    module = model.get_submodule(part.module)
    assert isinstance(module, Weight | RMSNorm | Bias), part.module
    return module


def assign(model: Transformer, target: Target, tensor: Tensor) -> None:
    """Takes over a float tensor of the target's shape, in the formats of the modules that it belongs to."""
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
            of = () if part.expert is None else (part.expert,)
            module.assign(tensor[part.rows], *of, row=part.row)


def view(model: Transformer, target: Target) -> Tensor:
    """The part of the model's own tensor that a tensor of the layout is, which must go to one place as it is."""
    (part,) = target.parts
    assert not target.transposed and part.rows == slice(0, None, 1)
    weight = module_of(model, part).weight
    return (weight if part.expert is None else weight[part.expert])[part.row : part.row + target.shape[0]]
