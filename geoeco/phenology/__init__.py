"""When: vegetation indices, smoothing of irregular series, and the dates and sizes of growing seasons."""

from geoeco.phenology.indices import evi, evi2, ndvi
from geoeco.phenology.seasons import QUALITY, metrics
from geoeco.phenology.smoothing import smooth

__all__ = ["QUALITY", "evi", "evi2", "metrics", "ndvi", "smooth"]
