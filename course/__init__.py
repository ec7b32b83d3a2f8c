"""What makes a course of the notebooks: figures with a text, pictures that move without a kernel, and the form."""
