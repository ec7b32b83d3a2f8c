"""The report, and what builds what is handed in: executed notebooks, the PDF, the submission."""
