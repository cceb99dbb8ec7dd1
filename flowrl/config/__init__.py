"""From YAML to components: files and dotted overrides, then ``target:`` mappings become objects.

Every error gives its dotted place: ``config.sampler.noise_levle: FlowSDE has no such field; did you mean 'noise_level'?``
Components never see a config; this package is the only one that knows there is one.
"""

from flowrl.config.build import instantiate, instantiate_data, validate
from flowrl.config.files import asset_path, bundled_configs, config_path, load_config

__all__ = ["asset_path", "bundled_configs", "config_path", "instantiate", "instantiate_data", "load_config", "validate"]
