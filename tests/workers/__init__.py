"""Several processes behind one port: started, watched over, replaced and drained."""
