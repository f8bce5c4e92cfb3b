"""From a model's folder to modules on a device: loading, int8, packed layouts."""
