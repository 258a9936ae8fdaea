"""A model or the Linear Representation Bench -> a Zarr store of activations."""
