"""The frozen base: found and checked, quantised to NF4 for training, dequantised into the twin."""
