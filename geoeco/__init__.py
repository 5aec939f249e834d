"""geoeco: Earth observation in, georeferenced answers out."""
