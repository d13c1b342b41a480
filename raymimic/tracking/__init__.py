"""Records of a training: MLflow, TensorBoard, pictures. Only the driver imports this."""
