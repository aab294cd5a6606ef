package main

import (
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/fairlead-mesh/fairlead/internal/admin"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/ztunnel"
)

// ztunnelCommand runs the layer-4 proxy of one workload from a local file.
func ztunnelCommand() *cobra.Command {
	var file, level string
	var json bool
	c := &cobra.Command{
		Use: "ztunnel --config FILE", Short: "Run an unprivileged ztunnel for one workload from a local file", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			data, err := os.ReadFile(file)
			if err != nil {
				return fmt.Errorf("ztunnel: %w", err)
			}
			cfg, err := ztunnel.Parse(data)
			if err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			l, ok := admin.ParseLevel(level)
			if !ok {
				return fmt.Errorf("ztunnel: --log-level: unknown level %q", level)
			}
			lv := &slog.LevelVar{}
			lv.Set(l)
			cfg.Logger, cfg.Registry = logger(lv, json), &stats.Registry{}
			cfg.Registry.RegisterProcess()
			z, err := ztunnel.New(cfg)
			if err != nil {
				return err
			}
			releaseSoon()
			return z.Run(cmd.Context())
		},
	}
	c.Flags().StringVarP(&file, "config", "c", "", "YAML file: settings, workloads, services and policies")
	c.Flags().StringVarP(&level, "log-level", "l", "info", "trace, debug, info, warning, error, critical or off")
	c.Flags().BoolVar(&json, "log-json", false, "log as JSON")
	_ = c.MarkFlagRequired("config")
	return c
}
