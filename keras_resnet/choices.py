"""What the programs' flags choose from and their defaults, so that reading a command line needs neither Keras nor
TensorFlow, whose import takes seconds."""

# Weights: the extensions of the files, and names of normalizations.
WEIGHTS = (".keras", ".h5", ".safetensors", ".pth", ".pt", ".th", ".bin")
NORMALIZATIONS = ("caffe", "torch", "cifar10", "cifar100")

# Evaluation (P1 3.4).
SPLITS = ("test", "validation", "all")  # of data
PROTOCOLS = ("center", "10-crop", "multi-scale", "single")
COLOR_SAMPLE = 10_000  # images for the colour statistics

# Serving.
FORMATS = ("saved_model", "openvino", "onnx", "litert", "web")
DTYPES = ("float32", "bfloat16", "int8")
TOP_K = 5
MAX_PIXELS = 50_000_000  # of a file: 150 MB once it is decoded, 16 of them at a time
