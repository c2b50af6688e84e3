"""Records in, validated splits out."""
