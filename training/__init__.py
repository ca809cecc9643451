"""A labelled folder of images in, a bundle out."""
