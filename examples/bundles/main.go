// Command bundles packs a folder as a signed OPA bundle and serves it, as
// "opa build" and a file server would.
package main

import (
	"flag"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/fairlead-mesh/fairlead/examples"
)

func main() {
	secret := flag.String("secret", "change me", "key of the signature, HS256")
	flag.Parse()
	if flag.NArg() != 2 {
		fmt.Fprintln(os.Stderr, "usage: bundles [-secret KEY] FOLDER ADDRESS")
		os.Exit(2)
	}
	s := &http.Server{Addr: flag.Arg(1), Handler: examples.Bundles(flag.Arg(0), *secret), ReadHeaderTimeout: 10 * time.Second}
	if err := s.ListenAndServe(); err != nil {
		fmt.Fprintln(os.Stderr, "bundles: "+err.Error())
		os.Exit(1)
	}
}
