"""The program: trains a split model from a config file (`python train/main.py --config FILE`)."""
