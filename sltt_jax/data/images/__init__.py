"""Image sets from tensorflow-datasets, without TensorFlow."""
