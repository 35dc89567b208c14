"""THE definition of the model, for every device, for training and serving. It knows only ops."""
