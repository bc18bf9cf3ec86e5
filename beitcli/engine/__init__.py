"""The jobs: one public function a file. It takes a config and `on_event`, and returns a report."""
