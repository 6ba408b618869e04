// Command weft-cni is Weft's CNI plugin; a container runtime runs it.
package main

import "weft/prog/cni"

func main() { cni.Main() }
