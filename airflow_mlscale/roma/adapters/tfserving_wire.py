"""Messages of TensorFlow Serving's gRPC services, and of the tensors and examples in them.

https://github.com/tensorflow/serving/tree/master/tensorflow_serving/apis. An example and an enumeration have the
wire form of bytes and of an integer, and are declared so.
"""

from __future__ import annotations

from collections.abc import Mapping

from airflow_mlscale.roma.adapters import wire

PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
MODEL_SERVICE = "tensorflow.serving.ModelService"

_SPEC = "model_spec=1:ModelSpec"
_SHAPED = "dtype=1:int32 tensor_shape=2:TensorShapeProto version_number=3:int32 tensor_content=4:bytes"
_INTEGERS = "int_val=7:*int32 string_val=8:*bytes int64_val=10:*int64 uint32_val=16:*uint32 uint64_val=17:*uint64"

MESSAGES: Mapping[str, str] = {
    "Int64Value": "value=1:int64",
    "Any": "type_url=1:string value=2:bytes",
    "ModelSpec": "name=1:string version=2:Int64Value signature_name=3:string version_label=4:string",
    "Head": _SPEC,
    "Dim": "size=1:int64 name=2:string",
    "TensorShapeProto": "dim=2:*Dim unknown_rank=3:bool",
    "TensorProto": f"{_SHAPED} half_val=13:*int32 float_val=5:*float double_val=6:*double {_INTEGERS} "
    "bool_val=11:*bool",
    "PackedTensorProto": f"{_SHAPED} half_val=13:*int32 float_val=5:bytes double_val=6:bytes {_INTEGERS} "
    "bool_val=11:bytes",
    "PredictRequest": f"{_SPEC} inputs=2:map<TensorProto> output_filter=3:*string",
    "PredictResponse": "outputs=1:map<PackedTensorProto> model_spec=2:ModelSpec",
    "ExampleList": "examples=1:*bytes",
    "ExampleListWithContext": "examples=1:*bytes context=2:bytes",
    "Input": "example_list=1:ExampleList example_list_with_context=2:ExampleListWithContext",
    "ExamplesRequest": f"{_SPEC} input=2:Input",
    "Class": "label=1:string score=2:float",
    "Classifications": "classes=1:*Class",
    "ClassificationResult": "classifications=1:*Classifications",
    "ClassificationResponse": "result=1:ClassificationResult model_spec=2:ModelSpec",
    "Regression": "value=1:float",
    "RegressionResult": "regressions=1:*Regression",
    "RegressionResponse": "result=1:RegressionResult model_spec=2:ModelSpec",
    "TensorInfo": "name=1:string dtype=2:int32 tensor_shape=3:TensorShapeProto",
    "SignatureDef": "inputs=1:map<TensorInfo> outputs=2:map<TensorInfo> method_name=3:string",
    "SignatureDefMap": "signature_def=1:map<SignatureDef>",
    "GetModelMetadataRequest": f"{_SPEC} metadata_field=2:*string",
    "GetModelMetadataResponse": f"{_SPEC} metadata=2:map<Any>",
    "GetModelStatusRequest": _SPEC,
    "StatusProto": "error_code=1:int32 error_message=2:string",
    "ModelVersionStatus": "version=1:int64 state=2:int32 status=3:StatusProto",
    "GetModelStatusResponse": "model_version_status=1:*ModelVersionStatus",
    "BytesList": "value=1:*bytes",
    "FloatList": "value=1:*float",
    "Int64List": "value=1:*int64",
    "Feature": "bytes_list=1:BytesList float_list=2:FloatList int64_list=3:Int64List",
    "Features": "feature=1:map<Feature>",
    "Example": "features=1:Features",
    "MetaInfoDef": "tags=4:*string",
    "MetaGraphDef": "meta_info_def=1:MetaInfoDef signature_def=5:map<SignatureDef>",
    "SavedModel": "meta_graphs=2:*MetaGraphDef",
}

_CLASSES = wire.declare("roma.tfserving", MESSAGES)

Head = _CLASSES["Head"]
"""What the gateway needs to know of any request; tensors and examples stay unread."""
TensorProto = _CLASSES["TensorProto"]
PredictRequest = _CLASSES["PredictRequest"]
PredictResponse = _CLASSES["PredictResponse"]
ExamplesRequest = _CLASSES["ExamplesRequest"]
"""Of ``Classify`` and of ``Regress``: both have the same fields."""
ClassificationResponse = _CLASSES["ClassificationResponse"]
RegressionResponse = _CLASSES["RegressionResponse"]
SignatureDefMap = _CLASSES["SignatureDefMap"]
GetModelMetadataRequest = _CLASSES["GetModelMetadataRequest"]
GetModelMetadataResponse = _CLASSES["GetModelMetadataResponse"]
GetModelStatusRequest = _CLASSES["GetModelStatusRequest"]
GetModelStatusResponse = _CLASSES["GetModelStatusResponse"]
Example = _CLASSES["Example"]
SavedModel = _CLASSES["SavedModel"]
"""Of a file ``saved_model.pb``: its signatures; graphs stay unread."""

DATATYPES: Mapping[int, str] = {
    1: "FP32",
    2: "FP64",
    3: "INT32",
    4: "UINT8",
    5: "INT16",
    6: "INT8",
    7: "BYTES",
    9: "INT64",
    10: "BOOL",
    14: "BF16",
    17: "UINT16",
    19: "FP16",
    22: "UINT32",
    23: "UINT64",
}
"""``tensorflow.DataType`` → Open Inference Protocol name."""

NUMBERS: Mapping[str, int] = {name: number for number, name in DATATYPES.items()}

VALUES: Mapping[str, str] = {
    "FP16": "half_val",
    "BF16": "half_val",
    "FP32": "float_val",
    "FP64": "double_val",
    "INT8": "int_val",
    "INT16": "int_val",
    "INT32": "int_val",
    "UINT8": "int_val",
    "UINT16": "int_val",
    "UINT32": "uint32_val",
    "INT64": "int64_val",
    "UINT64": "uint64_val",
    "BOOL": "bool_val",
    "BYTES": "string_val",
}
"""Where a `TensorProto` keeps its values."""

TYPES: Mapping[str, int] = {
    "DT_FLOAT": 1,
    "DT_DOUBLE": 2,
    "DT_INT32": 3,
    "DT_UINT8": 4,
    "DT_INT16": 5,
    "DT_INT8": 6,
    "DT_STRING": 7,
    "DT_INT64": 9,
    "DT_BOOL": 10,
    "DT_BFLOAT16": 14,
    "DT_UINT16": 17,
    "DT_HALF": 19,
    "DT_UINT32": 22,
    "DT_UINT64": 23,
}
"""Names of ``tensorflow.DataType``, as signatures are described with them."""

STATES: Mapping[str, int] = {"UNKNOWN": 0, "START": 10, "LOADING": 20, "AVAILABLE": 30, "UNLOADING": 40, "END": 50}
CODES: Mapping[str, int] = {"OK": 0, "UNKNOWN": 2}
