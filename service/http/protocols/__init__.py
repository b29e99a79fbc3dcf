"""Other servers' protocols, one file each, as translations of laplora's own: a request becomes a ``Call``, and the
``PredictResponse`` that answers it becomes their answer.

``calls`` is that one type, ``errors`` says which body an error has, ``paths`` which endpoints predict. Read ``vllm``
first, the shortest. ``tei`` is text-embeddings-inference, ``open_inference`` with ``tensors`` the Open Inference
Protocol and Triton's binary tensors. The endpoints are in ``service.http.routes``, the bodies in
``service.http.schemas``.
"""
