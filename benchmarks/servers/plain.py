"A plain FastAPI application: uvicorn plain:app"
from common import Model
from fastapi import FastAPI, UploadFile

model = Model()
app = FastAPI()


@app.post("/predict")
def predict(file: UploadFile):
    x = model.read(file.file.read())
    return model.answer(model.probabilities(x[None])[0])
