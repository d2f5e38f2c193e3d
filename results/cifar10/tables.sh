#!/bin/sh
# The tables of this folder, by `make cifar10-tables PHOTOS=FOLDER`: FOLDER has a folder of images for
# each class, CIFAR-10's 10000 test images as JPEG files. Hours of one core; stopped, it goes on.
set -e
OUT=results/cifar10
D="--data $PHOTOS --data-name cifar10"
A="-m resnet26.cifar10-adv -m san10-pair.cifar10-adv"
nine="resnet26 san10-pair san10-patch resnet38 san15-pair san15-patch resnet50 san19-pair san19-patch"
M=$(for name in $nine; do printf -- '-m %s.cifar10 ' "$name"; done)
S=$(for seed in 1 2; do for name in resnet26 san10-pair san10-patch; do
  printf -- '-m %s.cifar10-s%s ' "$name" "$seed"; done; done)
sanrobust rotate $M $D --out $OUT
sanrobust pgd $M $D --out $OUT
sanrobust compare $(printf '%s.cifar10 ' $nine) --all-pairs --everything --out $OUT >"$OUT/runs/compared.txt"
for name in rotate pgd; do sanrobust $name $S $A $D --out $OUT/others; done
sanrobust pgd --attack autoattack --eps 8 $M $D --out $OUT/autoattack
sanrobust pgd --attack autoattack --eps 8 $A $D --num-samples 1000 --out $OUT/adversarial
sanrobust check $M $S $A $D --out $OUT/check
sanrobust spatial $M $D --grid 3x3x7 --out $OUT/spatial
sanrobust corrupt $M $D --out $OUT/corrupt
