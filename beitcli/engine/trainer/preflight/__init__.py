"""What training on these images with these settings will come to, told before the first step."""
