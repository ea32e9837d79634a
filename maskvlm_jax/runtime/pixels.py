"""What host and device must agree on about pixels."""

# Mean and standard deviation of ImageNet's pixels in [0, 1], red, green and blue: pictures are normalised by them.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
