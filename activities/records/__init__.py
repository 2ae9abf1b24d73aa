"""What is kept of files, uploads and batches. All calls block, and raise ``StoreError`` if the store cannot be used."""
