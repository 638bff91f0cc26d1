"""An application that alerts on the cluster's signals: it writes them into the file named by SIGNALS_FILE."""
