// Command weft is Weft's command line. Its command "weft launch" runs the agent.
package main

import (
	"os"

	"weft/prog/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }
