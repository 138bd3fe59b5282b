"""What every package stands on: errors, what is read, written, printed and hidden, and where things lie."""
