"""Choices and defaults of the programs' flags.

They are here so that parsing a command line imports neither Keras nor TensorFlow, which takes seconds.
"""

# Weights: file extensions and names of normalizations.
WEIGHTS = (".keras", ".h5", ".safetensors", ".pth", ".pt", ".th", ".bin")
NORMALIZATIONS = ("caffe", "torch", "cifar10", "cifar100")

# Evaluation (P1 3.4).
SPLITS = ("test", "validation", "all")  # of the data
PROTOCOLS = ("center", "10-crop", "multi-scale", "single")
COLOR_SAMPLE = 10_000  # images for the colour statistics

# Serving.
FORMATS = ("saved_model", "openvino", "onnx", "litert", "web")
DTYPES = ("float32", "bfloat16", "int8")
TOP_K = 5
MAX_PIXELS = 50_000_000  # of an image file: 150 MB when decoded, up to 16 at a time
