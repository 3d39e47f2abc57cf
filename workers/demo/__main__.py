"""`python -m featurewatch.workers.demo`."""

from featurewatch.workers.demo.main import main

if __name__ == "__main__":
    main()
