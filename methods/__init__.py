"""Methods: one a file, named as its file. Each is handed a backbone, images and as many labels as it may see.

``_loop`` is the base class of ordinary gradient descent; ``parts`` holds what two or more methods share.
"""
