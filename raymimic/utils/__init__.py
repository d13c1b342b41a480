"""robomimic's names for parts of the package, which never imports them."""
