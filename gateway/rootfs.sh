#!/bin/bash
# Assembles the root file system of the gateway's image in OUTDIR, from the
# Debian or Ubuntu packages of the machine it runs on and the gateway's static
# binary:
#
#     gateway/rootfs.sh OUTDIR BINARY
#
# It holds iptables of the nf_tables variant, ip, nft, the libraries they need
# and nothing else: no shell, no package manager. It may be mounted read-only.
set -euo pipefail

out=${1:?usage: $0 OUTDIR BINARY}
binary=${2:?usage: $0 OUTDIR BINARY}

if readelf --program-headers "$binary" | grep -q INTERP; then
    echo "$binary is not statically linked" >&2
    exit 1
fi

# What the rules use; an extension is one for matches and targets alike.
extensions=(conntrack DNAT MASQUERADE standard statistic tcp udp comment NAT)

rm -rf "$out"
mkdir -p "$out"/{dev,etc,proc,run,sys,tmp,etc/lb-svc/config,etc/lb-svc/pod} \
    "$out"/usr/{bin,sbin,lib,lib64,local/bin,share/doc}
chmod 1777 "$out/tmp"
for dir in bin sbin lib lib64; do
    ln -s "usr/$dir" "$out/$dir"
done
# So that the tools show names for the well-known tables and protocols.
mkdir -p "$out/etc/iproute2"
for table in rt_tables rt_protos rt_scopes; do
    for from in /etc/iproute2 /usr/share/iproute2; do
        [[ -e $from/$table ]] && cp "$from/$table" "$out/etc/iproute2/$table" && break
    done
done

packages=()

# Copies a file to the place it has, under /usr, and notes its package.
copy() {
    local file=$1 place=$1
    [[ $place == /usr/* ]] || place=/usr$place
    [[ -e $out$place ]] && return
    install -D --mode="$(stat --dereference --format=%a "$file")" "$file" "$out$place"
    # dpkg may know it behind its links, and without the merged /usr.
    local real name owner
    real=$(readlink --canonicalize "$file")
    for name in "$file" "$real" "${real#/usr}" "/usr$real"; do
        if owner=$(dpkg-query --search "$name" 2>/dev/null); then
            packages+=("${owner%%:*}")
            return
        fi
    done
    echo "$file belongs to no package" >&2
    return 1
}

# Copies what a file is linked to, the dynamic loader included.
closure() {
    local library
    while read -r library; do
        copy "$library"
    done < <(ldd "$1" | grep -o '/[^ ]*')
}

multi=$(command -v xtables-nft-multi)
nft=$(command -v nft)
ip=$(command -v ip)
for program in "$multi" "$nft" "$ip"; do
    copy "$(readlink --canonicalize "$program")"
    closure "$program"
done
for name in iptables iptables-save iptables-restore iptables-nft iptables-nft-save iptables-nft-restore; do
    ln -s xtables-nft-multi "$out/usr/sbin/$name"
done
# ip lies in /sbin or in /bin, of which one is a link to the other.
[[ -e $out/usr/sbin/ip ]] || ln -s ../bin/ip "$out/usr/sbin/ip"

modules=$(dirname "$(dpkg --listfiles iptables | grep --max-count=1 '/libxt_standard\.so$')")
for extension in "${extensions[@]}"; do
    for kind in xt ipt; do
        file=$modules/lib${kind}_$extension.so
        if [[ -e $file ]]; then
            copy "$file"
            closure "$file"
        fi
    done
done
install --mode=755 "$binary" "$out/usr/local/bin/lb-svc-gateway"

for package in $(printf '%s\n' "${packages[@]}" | sort --unique); do
    install -D --mode=644 "/usr/share/doc/$package/copyright" "$out/usr/share/doc/$package/copyright"
done

# The licences' texts, to which those files refer.
mkdir -p "$out/usr/share/common-licenses"
cp --dereference /usr/share/common-licenses/{Apache-2.0,GPL-2,GPL-3,LGPL-2.1,LGPL-3} \
    "$out/usr/share/common-licenses/"

# It has to work in itself.
for line in "/usr/sbin/iptables-nft-restore --version" "/usr/sbin/nft --version" \
    "/sbin/ip -V" "/usr/local/bin/lb-svc-gateway --version"; do
    # shellcheck disable=SC2086 # a program and its option
    if [[ $EUID == 0 ]]; then chroot "$out" $line; fi
done
du --summarize --human-readable "$out"
