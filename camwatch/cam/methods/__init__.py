"""The methods, by what they need of a model: gradients at a layer, attention, pixels, or further forward passes."""
