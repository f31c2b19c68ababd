"A plain FastAPI application: uvicorn plain:app"
from common import make_model
from fastapi import FastAPI, UploadFile

model = make_model()
app = FastAPI()


@app.post("/predict")
def predict(file: UploadFile):
    x = model.read(file.file.read())
    return model.answer(model.probabilities(x[None])[0])
