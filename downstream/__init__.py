"""What people do with a pretrained model: embeddings, regions, cell types, evaluation, pictures."""
