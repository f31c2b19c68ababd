"Everything that pip needs to know is read from settings.ini."
import re
from configparser import ConfigParser
from pathlib import Path

import setuptools

parser = ConfigParser(delimiters=["="])
parser.read("settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]


def listed(key):
    return cfg.get(key, "").split()


def absolute(readme):
    "The README for the package index, which has neither our images nor our files: their addresses in full."
    raw = f"https://raw.githubusercontent.com/{cfg['user']}/{cfg['repo']}/{cfg['branch']}/"
    files = f"{cfg['git_url']}/blob/{cfg['branch']}/"
    readme = re.sub(r"(!\[[^]]*\]\()(?!https?:)", lambda m: m[1] + raw, readme)
    return re.sub(r"((?<!!)\[[^]]*\]\()(?!https?:|#)", lambda m: m[1] + files, readme)


extras = {key.removesuffix("_requirements"): listed(key) for key in cfg
          if key.endswith("_requirements") and key not in ("pip_requirements", "conda_requirements")}

setuptools.setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=absolute(Path("README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
    url=cfg["git_url"],
    author=cfg["author"],
    keywords=listed("keywords"),
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=f">={cfg['min_python']}",
    install_requires=listed("requirements") + listed("pip_requirements"),
    extras_require=extras,
    packages=setuptools.find_packages(include=[cfg["lib_path"], f"{cfg['lib_path']}.*"]),
    package_data={cfg["lib_name"]: listed("package_data")},
    include_package_data=False,
    zip_safe=False,
    entry_points={"console_scripts": listed("console_scripts"),
                  "nbdev": [f"{cfg['lib_name']}={cfg['lib_path']}._modidx:d"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Education",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
)
