"""What runs inside the rivals' own environments; nothing here imports the product."""
