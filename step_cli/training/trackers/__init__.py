"""What a run is told to while it trains: TensorBoard, wandb, MLflow, Trackio."""
