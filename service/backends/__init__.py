"""Who has the weights: the device of this process, or replicas elsewhere.

``service.scoring.backend`` says what each must do. ``local`` is the queue and the device of this process.
"""
