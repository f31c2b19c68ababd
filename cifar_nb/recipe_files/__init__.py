"The named recipes, one TOML file each."
