// Command mkcerts makes the certificates and the token that the examples use.
package main

import (
	"fmt"
	"os"

	"github.com/fairlead-mesh/fairlead/examples"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: mkcerts DIRECTORY")
		os.Exit(2)
	}
	if err := examples.WriteCertificates(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "mkcerts: "+err.Error())
		os.Exit(1)
	}
}
