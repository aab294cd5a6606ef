package main

import (
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/fairlead-mesh/fairlead/demo"
	"github.com/fairlead-mesh/fairlead/internal/admin"
)

// demoCommand runs a mesh on this machine and shows what it does.
func demoCommand() *cobra.Command {
	var keep bool
	var level string
	c := &cobra.Command{
		Use: "demo", Short: "Run a whole mesh on loopback, prove what it does, and end", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, ok := admin.ParseLevel(level)
			if !ok {
				return fmt.Errorf("demo: --log-level: unknown level %q", level)
			}
			lv := &slog.LevelVar{}
			lv.Set(l)
			return demo.Run(cmd.Context(), demo.Options{Out: cmd.OutOrStdout(), Keep: keep, Logger: logger(lv, false)})
		},
	}
	c.Flags().BoolVar(&keep, "keep", false, "stay up after the table and print commands to try")
	c.Flags().StringVarP(&level, "log-level", "l", "off", "trace, debug, info, warning, error, critical or off")
	return c
}
