"""Store -> dictionary: sparse autoencoders, transcoders and crosscoders by one objective and one loop."""
