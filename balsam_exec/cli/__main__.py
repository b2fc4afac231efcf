from balsam_exec.cli import main

main()
