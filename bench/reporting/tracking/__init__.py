"""Rows as the runs of an experiment tracker: TensorBoard, MLflow."""
