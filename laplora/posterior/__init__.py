"""The Laplace posterior over LoRA weights: its curvature in several structures, and its file.

Start with the default: ``joint_core`` fits it, ``joint`` has its covariance. ``base`` says what every posterior
answers, ``structures`` has them by name.
"""
