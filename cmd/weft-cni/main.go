// Command weft-cni is Weft's CNI plugin. The container runtime runs it for every container that it
// adds or removes.
package main

import "weft/prog/cni"

func main() { cni.Main() }
