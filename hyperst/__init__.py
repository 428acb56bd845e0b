"""HyperST: spatial gene expression from histology images, on hyperbolic contrastive learning."""
