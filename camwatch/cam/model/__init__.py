"""What a model is: its modules, nested outputs, hooks, execution, targets, layouts, layers."""
