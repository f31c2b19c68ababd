"The bundled models, one `.safetensors` file each; `cifar_nb.predict.load_model` finds them."
